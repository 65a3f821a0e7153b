"""How many threads numpy's matrix products take in this process."""

from threadpoolctl import threadpool_limits


def use_one_thread() -> None:
    """Keep numpy's matrix products on the calling thread, for the life of the process.

    The codec's matrices are small. A second thread saves nothing, and it spins for a while after
    each product on the core that the network's own threads, or another process, need: in the demo
    an encoding of 0.6 ms took 4 ms.
    """
    threadpool_limits(limits=1)
