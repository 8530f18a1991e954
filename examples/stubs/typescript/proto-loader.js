// Registers a service with proto-loader, which reads the protos when the program starts.
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { fromStruct, toStruct } from "./struct.js";

const definition = protoLoader.loadSync("ossa/registry/v1/registry_service.proto", {
  includeDirs: ["../../../protos"],
});
const { RegistryService } = grpc.loadPackageDefinition(definition).ossa.registry.v1;
const registry = new RegistryService(process.env.REGISTRY ?? "localhost:50051", grpc.credentials.createInsecure());
const service = {
  name: "from-proto-loader",
  endpoint: "http://127.0.0.1:8080",
  version: "1.0.0",
  capabilities: [{ name: "greet", inputs: toStruct({ type: "object" }) }],
};
registry.RegisterService({ service }, (error, response) => {
  registry.close();
  if (error) throw error;
  console.log(response.service.name, JSON.stringify(fromStruct(response.service.capabilities[0].inputs)));
});
