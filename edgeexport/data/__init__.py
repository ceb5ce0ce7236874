"""Data that ships: the probe set, the demo, the sample and the recipe's template."""
