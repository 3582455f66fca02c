"""What others watch with, told by the library's own signals. Each module needs one package, and nothing needs them."""
