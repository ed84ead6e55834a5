"""The cluster simulator: lanes on Ray workers, of a cluster or of this machine. Ray is imported when the
first one is made."""

from fedjax_core.cluster.simulator import ClusterSimulator

__all__ = ["ClusterSimulator"]
