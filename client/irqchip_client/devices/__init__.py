"""Device models, and those who run them."""
