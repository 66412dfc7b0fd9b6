#!/usr/bin/env python3
"""An external attestor for Mayfly: who logged in.

The kernel keeps with every process the user that logged in (`/proc/PID/loginuid`): set once by PAM, inherited by every
child, and not changed by su or sudo. This attestor tells the agent, as `login:uid:1000` and `login:user:ann`.

    python3 login_attestor.py /run/mayfly-attestors/login.sock      # as root; needs grpcio and protobuf

    [[attest.plugin]]
    name = "login"
    socket = "/run/mayfly-attestors/login.sock"
    keys = ["uid", "user"]

It must run as root, and the socket's directory must be root's alone: the agent asks nobody else.
"""

import os
import pwd
import select
import sys
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NOBODY = 2**32 - 1


def messages():
    """The messages of proto/mayfly/attestor/v1/attestor.proto. (Or generate them: python -m grpc_tools.protoc.)"""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="attestor.proto", package="mayfly.attestor.v1", syntax="proto3")
    for name, fields in {
        "AttestRequest": [
            ("pid", kinds.TYPE_UINT32), ("pidfd_inode", kinds.TYPE_UINT64), ("uid", kinds.TYPE_UINT32),
            ("gid", kinds.TYPE_UINT32), ("cgroup", kinds.TYPE_BYTES), ("container_id", kinds.TYPE_STRING),
            ("pod_uid", kinds.TYPE_STRING),
        ],
        "Selector": [("key", kinds.TYPE_STRING), ("value", kinds.TYPE_STRING)],
        "AttestResponse": [("selectors", ".mayfly.attestor.v1.Selector")],
    }.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            if isinstance(kind, str):
                message.field.add(name=field, number=number, type=kinds.TYPE_MESSAGE, type_name=kind,
                                  label=kinds.LABEL_REPEATED)
            else:
                message.field.add(name=field, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"mayfly.attestor.v1.{name}"))
            for name in ("AttestRequest", "AttestResponse")]


AttestRequest, AttestResponse = messages()


def login_of(request):
    """The login uid of exactly the process that the agent means; None when that cannot be told."""
    try:
        # Numbers are used again: hold the process, and see that it is the one.
        pidfd = os.pidfd_open(request.pid)
    except OSError:
        return None
    try:
        if request.pidfd_inode and os.fstat(pidfd).st_ino != request.pidfd_inode:
            return None
        with open(f"/proc/{request.pid}/loginuid", encoding="ascii") as file:
            uid = int(file.read())
        # Still alive after the read: so the number was still its own.
        return None if select.select([pidfd], [], [], 0)[0] else uid
    except (OSError, ValueError):
        return None
    finally:
        os.close(pidfd)


def attest(request, context):
    uid = login_of(request)
    if uid is None:
        # Not "nothing is known": the agent will tell the process to try again.
        context.abort(grpc.StatusCode.UNAVAILABLE, "the process cannot be looked at")
    answer = AttestResponse()
    if uid != NOBODY:
        answer.selectors.add(key="uid", value=str(uid))
        try:
            answer.selectors.add(key="user", value=pwd.getpwuid(uid).pw_name)
        except KeyError:
            pass
    return answer


def main(path):
    method = grpc.unary_unary_rpc_method_handler(
        attest, request_deserializer=AttestRequest.FromString, response_serializer=AttestResponse.SerializeToString)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("mayfly.attestor.v1.Attestor", {"Attest": method})])
    if os.path.exists(path):
        os.unlink(path)
    os.umask(0o077)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
