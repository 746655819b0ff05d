"""The vocabulary: frozen values, validated when made. No I/O, no clock, no state."""
