"""A pool without Ray: the workers are objects of this process."""

import pickle

from fedjax_core.cluster.shard import Worker


class InProcess:
    """Stands for `pool.WorkerPool`: every share and every result goes through pickle, as between
    processes."""

    deaths, nodes = 0, 1

    def __init__(self, composed, plan, source, *, workers, streamed, **options):
        self.members = [Worker(composed, source.open(), plan, streamed=streamed) for _ in range(workers)]

    def put(self, broadcast):
        return pickle.dumps(broadcast)

    def run(self, broadcast, shares, loads):
        assert len(loads) == len(shares)
        done = []
        for s, share in enumerate(shares):
            worker = self.members[s % len(self.members)]
            done.append(
                pickle.loads(
                    pickle.dumps(worker.run(pickle.loads(broadcast), pickle.loads(pickle.dumps(share))))
                )
            )
        return done

    def measure(self, broadcast, share):
        return self.members[0].measure(pickle.loads(broadcast), share)

    def choose_lanes(self, most, measured):
        return self.members[0].choose_lanes(most, measured)

    def close(self):
        self.members = []
