"""A small client of `mayfly.task.v1.TaskAPI`: what the agent serves is learned by gRPC reflection, nothing is generated.

Needs: grpcio and grpcio-reflection.
"""

import os

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "mayfly.task.v1.TaskAPI"
HEADER = (("workload.spiffe.io", "true"),)


class Refused(Exception):
    """What the agent said no with: the reason is for programs, the message for people."""

    def __init__(self, code, reason, message):
        super().__init__(f"{reason or code}: {message}")
        self.code, self.reason = code, reason


class TaskApi:
    """Every method of the service as a method of this object; arguments are the request's fields."""

    def __init__(self, socket=None):
        socket = (socket or os.environ["SPIFFE_ENDPOINT_SOCKET"]).removeprefix("unix://").removeprefix("unix:")
        # Its own connections: a process is what the agent knows, and a pool could be shared by several.
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel("unix:" + socket, options=options)
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        for method in pool.FindServiceByName(SERVICE).methods:
            setattr(self, snake(method.name), self._method(method))

    def _method(self, method):
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = kind(
            f"/{SERVICE}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )

        def ask(**fields):
            try:
                return call(request(**fields), metadata=HEADER, timeout=None if method.server_streaming else 10)
            except grpc.RpcError as error:
                raise refused(error) from None

        return ask


def snake(name):
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


def refused(error):
    """`google.rpc.ErrorInfo` from the status's details."""
    reason = ""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in STATUS.FromString(value).details:
                if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                    reason = INFO.FromString(detail.value).reason
    return Refused(error.code().name, reason, error.details())


def _messages():
    """The two messages of `google.rpc` that carry a reason."""
    file = descriptor_pb2.FileDescriptorProto(
        name="taskapi_status.proto", package="taskapi", syntax="proto3", dependency=["google/protobuf/any.proto"]
    )
    field = descriptor_pb2.FieldDescriptorProto
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    status.field.add(
        name="details",
        number=3,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".google.protobuf.Any",
    )
    info = file.message_type.add(name="Info")
    info.field.add(name="reason", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    found = [pool.FindMessageTypeByName(f"taskapi.{name}") for name in ("Status", "Info")]
    return [message_factory.GetMessageClass(one) for one in found]


STATUS, INFO = _messages()
