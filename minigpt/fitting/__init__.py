"""What fits in memory: how much is free, how much a run needs, and the micro-batch that follows from both."""
