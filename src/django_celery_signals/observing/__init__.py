"""What others watch with, told by the library's own signals. A module may need a package, and nothing needs them."""
