"""The paper's path with every row guarded: within a tolerance of its natural size, or computed directly."""
