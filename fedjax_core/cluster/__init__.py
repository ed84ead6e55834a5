"""The cluster simulator: lanes on Ray workers, on a cluster or on this machine. Ray is imported when the
first simulator is made."""

from fedjax_core.cluster.simulator import ClusterSimulator

__all__ = ["ClusterSimulator"]
