"""What a layer computes by the extension in C: its loop, products, small layers, and memory."""

from .extension import which_loop as which_loop
from .memory import release_memory as release_memory
from .memory import waiting_memory as waiting_memory
from .products import which_products as which_products
