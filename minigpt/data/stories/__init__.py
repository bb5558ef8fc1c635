"""The built-in text: stories from a small grammar whose exact entropy is known, and questions about them."""
