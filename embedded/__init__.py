"""Everything that made the embedded model and the demo questions; not part of the wheel."""
