"""Statistical disclosure control: one typed policy for which results may leave a site, with evidence of every
decision.

    policy         the rules and their limits, one dataclass
    rules          each rule as a function from counts to a finding
    tables         counts of people: cells suppressed or rounded so that no small one can be calculated from the others
    differencing   what all releases together reveal of few people
    releases       the desk that results pass: checks them, and records each decision

>>> desk = Desk(OutputPolicy(minimum=5))
>>> desk.count("smokers", [f"person {i}" for i in range(12)])
12
>>> desk.count("smokers, again", [f"person {i}" for i in range(11)])
Traceback (most recent call last):
fedjax_core.disclosure.releases.Declined: declined: smokers, again (differencing)
"""

from fedjax_core.disclosure.differencing import Guard
from fedjax_core.disclosure.policy import OutputPolicy
from fedjax_core.disclosure.releases import Declined, Desk
from fedjax_core.disclosure.tables import Protected, protect

__all__ = ["Declined", "Desk", "Guard", "OutputPolicy", "Protected", "protect"]
