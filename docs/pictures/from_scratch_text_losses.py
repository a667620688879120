"""The same of decoders trained from scratch on text."""

from from_scratch_losses import draw as draw

RECORDS = "from-scratch-text"
