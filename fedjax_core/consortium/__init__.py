"""A consortium in a box: a coordinator and its sites as processes of this machine, as they would be on
machines of their own.

    folder/coordinator/   coordinator.key .pub   roster.toml   study.toml   ray/   audit/   run/   result.json
    folder/sites/NAME/    NAME.key .pub   coordinator.pub   roster.toml   site.toml   policy.toml   expected.toml   data/   ray/   state/
    folder/tls/authority/ the certificate authority: ca.key, token
    folder/logs/          the output of each process

    setup.py      the folder: keys made at each site, certificates, a token, a roster, data, policies
    processes.py  a Ray node for the coordinator and one for each site, each with its own certificate, on loopback
    lead.py       the coordinator's own process: `fit` over a `Federation`
    box.py        all of it: start, watch, start again what was killed, verify the audit logs, stop

`fedjax-core consortium run` is `box.run`. To go from here to real machines, each folder moves to its machine,
and Ray is started on each with the variables in its `ray/environment`.
"""
