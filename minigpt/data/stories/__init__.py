"""Generate the built-in text: stories from a small grammar with a known exact entropy, and questions about them."""
