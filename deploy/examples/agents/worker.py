"""The Python worker: joins what was offered to it, reads, is denied a write, asks people, writes once.

    python3 worker.py OFFER URL

Prints what it sees as JSON lines, and reads again for each line on standard input.
"""

import json
import sys
import time
import urllib.error
import urllib.request

from taskapi import Refused, TaskApi

WIKI = "https://wiki.example.org"
DETAIL = "urn:mayfly:rar:target-access"
WRITE = {"type": DETAIL, "locations": [WIKI], "actions": ["write"]}
# The operation itself: what people are shown, and what an approval is for. Another page is another question.
PAGE = {"http": {"method": "POST", "host": "wiki.example.org", "path": "/page/7"}}


def main():
    offer, url = sys.argv[1:]
    api = TaskApi()
    try:
        task = api.join(delegation_id=offer).id
    except Refused as no:
        say(refused=no.reason)
        sys.exit(1)
    say(task=task)
    reading = api.issue(task_id=task, format="FORMAT_ACCESS_TOKEN", audience=[WIKI], details=[reads()]).token
    say(read=use(url, "GET", "/page/7", reading))
    say(write_with_read_token=use(url, "POST", "/page/7", reading))
    wanted = dict(task_id=task, format="FORMAT_ACCESS_TOKEN", audience=[WIKI], details=[WRITE], operation=PAGE)
    try:
        api.issue(**wanted)
        say(denied="")
    except Refused as no:
        say(denied=no.reason)
    approval = ask(api, task)
    say(approval=approval)
    writing = wait(api, wanted, approval)
    # The yes was for page 7. What is refused uses nothing up.
    say(write_elsewhere=use(url, "POST", "/page/8", writing))
    say(write=use(url, "POST", "/page/7", writing))
    say(write_again=use(url, "POST", "/page/7", writing))
    try:
        api.issue(**wanted, approval_id=approval)
        say(approval_again="")
    except Refused as no:
        say(approval_again=no.reason)
    for _ in sys.stdin:
        say(read_later=use(url, "GET", "/page/7", reading))


def reads():
    return {**WRITE, "actions": ["read"]}


def ask(api, task):
    """Asks people; the name of the question."""
    said = api.authorize(task_id=task, action="write", target="wiki", operation=PAGE, request_approval=True)
    return said.access_request.approval_id


def wait(api, wanted, approval):
    """A fresh credential, once somebody has approved."""
    while True:
        try:
            return api.issue(**wanted, approval_id=approval).token
        except Refused as no:
            if no.reason != "approval_pending":
                raise
            time.sleep(0.2)


def use(url, method, path, token):
    """The resource server's status."""
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def say(**facts):
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
