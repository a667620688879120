"""What a program may set: the number of threads, how hard FFTW looks for a plan, and what it has learnt by looking.

>>> from refattn import tuning
>>> tuning.set_thread_count(2)
>>> tuning.thread_count()
2
>>> tuning.set_thread_count(None)
"""

from refattn._fft import export_wisdom, import_wisdom, set_planner_effort
from refattn._threads import set_thread_count, thread_count

__all__ = ["export_wisdom", "import_wisdom", "set_planner_effort", "set_thread_count", "thread_count"]
