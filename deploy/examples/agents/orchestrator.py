"""The orchestrator: works in the task that `mayfly run --task publish` began for it, and delegates parts of it.

It holds no credential itself. What it offers is no secret: only the named identity can take it up.
"""

import json
import os
import sys

from taskapi import Refused, TaskApi

WIKI = "https://wiki.example.org"
DETAIL = "urn:mayfly:rar:target-access"


def main():
    api, task = TaskApi(), os.environ["MAYFLY_TASK"]
    say(task=task, chain=list(api.get(task_id=task).chain))
    # Nothing for itself: it is there to delegate.
    try:
        api.issue(task_id=task, format="FORMAT_ACCESS_TOKEN", audience=[WIKI])
        say(own_credential="issued")
    except Refused as no:
        say(own_credential=no.reason)
    for worker, actions in (("python", ["read", "write"]), ("node", ["read"])):
        offer = api.delegate(
            task_id=task,
            spiffe_id=f"spiffe://example.org/agent/worker/{worker}",
            purpose=f"the {worker} worker's part",
            details=[{"type": DETAIL, "locations": [WIKI], "actions": actions}],
        )
        say(offer=offer.id, worker=worker)
    # Its own work would be here. The story ends it with `kill -9`.
    sys.stdin.read()


def say(**facts):
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
