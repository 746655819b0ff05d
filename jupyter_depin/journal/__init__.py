"""What must survive a crash: leases, newest vouchers, running kernels, transactions, receipts. The one door to SQLite.

A call that returned is on the disk (WAL, synchronous FULL): the payer journals a voucher before it sends it, the payee
before it says that it has it, and whatever kills the process, the books are those of the last call that returned.
Several processes of one user may share a journal; a lease belongs to one of them at a time (`claim`).

Rejected: a log of events that is replayed. Only the newest voucher has any worth, and one row is its own replay.
Rejected: one file per lease. Two programs could not take a lease over without a second kind of lock.
"""

from jupyter_depin.journal.books import Journal
from jupyter_depin.protocol.record import LeaseRecord, Role

__all__ = ["Journal", "LeaseRecord", "Role"]
