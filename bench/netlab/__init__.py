"""Networks on one machine: wide-area links and homes behind NAT, made of network namespaces.

Needs root, iproute2 and `/dev/net/tun`; `Town` needs nftables too. `missing()` says what is
not there. No kernel module for delay or loss is used: one process carries every packet in
user space, whole bursts at a time.

    with WideArea(["gateway", "a", "b"], delay_ms=50, jitter_ms=5, loss=0.001) as net:
        served = net.start("a", ["unisono", "node", "--listen", f"{net.address('a')}:7000"])
        net.run("gateway", ["unisono", "ask", "..."])
"""

from bench.netlab.area import WideArea
from bench.netlab.lane import Path
from bench.netlab.namespaces import missing
from bench.netlab.town import Town

__all__ = ["Path", "Town", "WideArea", "missing"]
