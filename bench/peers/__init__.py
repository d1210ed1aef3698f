"""The parts of against_peers.py: one module a kind of work, and what they share."""
