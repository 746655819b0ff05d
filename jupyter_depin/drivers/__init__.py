"""Where machine, adapter and clock meet. No decisions: the machines take those."""
