"""The way to a device: page-locked slots, and copies from them."""
