"""A module seen as names: its tree, its RNNs, targets and selections."""

from .groups import Groups as Groups
from .groups import as_groups as as_groups
from .groups import grouped_parts as grouped_parts
from .groups import names_of_groups as names_of_groups
from .selection import Selection as Selection
from .selection import Target as Target
from .selection import as_targets as as_targets
from .selection import select as select
from .selection import select_in as select_in
from .targets import Layers as Layers
from .targets import Names as Names
from .targets import quote as quote
from .targets import resolve as resolve
from .targets import rnns_there_are as rnns_there_are
from .tree import Part as Part
from .tree import Tree as Tree
from .tree import can_train as can_train
from .tree import inner_name as inner_name
from .tree import join as join
from .tree import numel as numel
from .tree import reshard as reshard
from .tree import rewrite as rewrite
from .tree import runs_fused as runs_fused
from .tree import unwrap as unwrap
from .tree import within as within
from .tree import wrapped_name as wrapped_name
