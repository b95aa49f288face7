"""Between frozen and trained: weights that may move a little, or by way of few numbers."""

from .anchor import Anchor as Anchor
from .anchor import anchor as anchor
from .interpolate import interpolate as interpolate
from .lora import LoRA as LoRA
from .lora import add_lora as add_lora
