"""From evidence to a verdict: figures, intervals, checks."""
