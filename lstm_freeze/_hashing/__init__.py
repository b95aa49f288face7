"""Fingerprints of tensors and of rows: 64-bit numbers that change with any bit."""

from .tensors import Bits as Bits
from .tensors import bits_of as bits_of
from .tensors import difference as difference
from .tensors import fingerprints as fingerprints
from .tensors import has_bits as has_bits
from .tensors import row_sums as row_sums
from .tensors import same_bits as same_bits
from .tensors import stored as stored
from .tensors import tensor_of as tensor_of
