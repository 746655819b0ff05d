"""The renting side: policy and task groups. Touches neither ZeroMQ nor iroh nor web3 nor SQLite itself."""
