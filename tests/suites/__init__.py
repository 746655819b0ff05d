"""Other people's test suites, run unchanged with a plain kernel and with a rented one."""
