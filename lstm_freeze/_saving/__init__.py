"""What training changed: fingerprints of a whole module, and files that hold only the changes."""

from .changes import load_changes as load_changes
from .changes import save_changes as save_changes
from .checkpoints import base_in as base_in
from .checkpoints import filled as filled
from .checkpoints import stripped as stripped
from .checkpoints import without_note as without_note
from .fingerprints import as_base as as_base
from .fingerprints import fingerprints as fingerprints
from .fingerprints import prints_of as prints_of
from .tensors import state_of as state_of
from .tensors import with_names as with_names
