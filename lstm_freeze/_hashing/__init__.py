"""Fingerprints of tensors and of rows: numbers that change with any bit.

`tensor_hashes(tensors)` is the one to use for whole tensors: 64 bits each, the same on every
platform, device and version of torch, with and without the C extension. As text, `f"{value:016x}"`.
`row_hashes` and `column_hashes` tell samples of a batch apart (128 bits each). `bits_of`,
`same_bits` and `difference` compare bit for bit.
"""

from .bits import Bits as Bits
from .bits import bits_of as bits_of
from .bits import difference as difference
from .bits import has_bits as has_bits
from .bits import same_bits as same_bits
from .bits import stored as stored
from .bits import tensor_of as tensor_of
from .row_hashes import column_hashes as column_hashes
from .row_hashes import row_hashes as row_hashes
from .tensor_hashes import tensor_hashes as tensor_hashes
from .word_sums import has_extension as has_extension
