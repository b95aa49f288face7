"""What optimizers hold: their state, param groups, learning-rate schedules."""

from .forgetting import drop_state as drop_state
from .param_groups import param_groups as param_groups
from .param_groups import slanted_triangular as slanted_triangular
from .state import prepare_fused_momentum as prepare_fused_momentum
from .state import refuse_lbfgs as refuse_lbfgs
from .state import require_held as require_held
from .wrappers import as_optimizers as as_optimizers
from .wrappers import innermost as innermost
from .wrappers import with_inner as with_inner
