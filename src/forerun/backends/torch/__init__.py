"""The reference backend in plain PyTorch (extra `torch`)."""
