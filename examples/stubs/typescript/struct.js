// Conversion of plain values to google.protobuf.Struct and back, for proto-loader.

/** Returns an object as a Struct. */
export function toStruct(object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([key, value]) => [key, toValue(value)])) };
}

function toValue(value) {
  if (value === null) return { nullValue: 0 };
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  if (typeof value === "object") return { structValue: toStruct(value) };
  if (typeof value === "boolean") return { boolValue: value };
  return typeof value === "number" ? { numberValue: value } : { stringValue: String(value) };
}

/** Returns a Struct as an object. */
export function fromStruct(struct) {
  return Object.fromEntries(Object.entries(struct.fields ?? {}).map(([key, value]) => [key, fromValue(value)]));
}

function fromValue(value) {
  if (value.structValue) return fromStruct(value.structValue);
  if (value.listValue) return (value.listValue.values ?? []).map(fromValue);
  return value.stringValue ?? value.numberValue ?? value.boolValue ?? null;
}
