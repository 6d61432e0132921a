"""Few-shot and bilevel learning in PyTorch."""
