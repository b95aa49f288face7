"""Between frozen and trained: LoRA factors, an anchor, and mixtures of old and new weights."""

from .anchor import Anchor as Anchor
from .anchor import anchor as anchor
from .interpolate import interpolate as interpolate
from .lora import LoRA as LoRA
from .lora import add_lora as add_lora
