"""What the server and its clients share: version ranges, and the JSON shape of services.

Imports only ``ossa.registry.v1``, protobuf and the standard library, because both distributions contain it.
"""
