"""The meter: what is owed for the time served, when to sign, when to pause, when to end. No I/O, no clock.

What is paid is *time served*: from the moment that the kernel is ready until the end, less the time that the provider
kept it paused. The payee counts it and claims it every tick; the payer checks each claim against a clock of its own and
answers with a cumulative voucher. Nobody pays ahead: the payee risks `arrears_ns` of service, the payer nothing beyond
its clock's tolerance.

Both machines take times in integer nanoseconds of any monotonic origin and speak the words of every machine here:
`receive(x, now)`, `next_event()`, `get_timer()`, `handle_timer(now)`.
"""
