"""Fine-tuning and freezing for recurrent encoders in PyTorch."""
