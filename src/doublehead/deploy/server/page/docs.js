// The OpenAPI document, to read.

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

// A schema in a few words, with links to those that have names.
function words(schema) {
  if (!schema) return "";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return element("a", { href: `#${name}`, textContent: name });
  }
  if (schema.anyOf) return element("span", {}, ...schema.anyOf.flatMap((one, place) => [place ? " or " : "", words(one)]));
  if (schema.type === "array") return element("span", {}, "list of ", words(schema.items) || "values");
  if (schema.enum) return schema.enum.join(" | ");
  const range = [schema.minimum ?? "", schema.maximum ?? ""];
  const kind = schema.format === "binary" ? "bytes" : schema.type ?? "any";
  return kind + (range.join("") ? ` (${range.join(" to ")})` : "") + ("default" in schema ? `, else ${schema.default}` : "");
}

function table(rows) {
  return element("table", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell)))));
}

function route(path, method, told) {
  const parts = [
    element("h2", {}, element("code", { textContent: `${method.toUpperCase()} ${path}` })),
    element("p", { textContent: told.description ?? told.summary ?? "" }),
  ];
  if (told.parameters?.length) {
    const rows = told.parameters.map((one) => [element("code", { textContent: one.name }), words(one.schema), one.description ?? ""]);
    parts.push(element("h3", { textContent: "Query" }), table(rows));
  }
  if (told.requestBody) {
    const rows = Object.entries(told.requestBody.content).map(([kind, { schema }]) => {
      const fields = Object.keys(schema.properties ?? {}).join(", ");
      return [element("code", { textContent: kind }), fields ? `field ${fields}: ${"files"}` : words(schema)];
    });
    parts.push(element("h3", { textContent: "Body" }), table(rows));
  }
  const rows = Object.entries(told.responses).map(([status, { description, content }]) => [
    element("code", { textContent: status }),
    words(Object.values(content ?? {})[0]?.schema),
    description,
  ]);
  parts.push(element("h3", { textContent: "Answers" }), table(rows));
  return element("article", {}, ...parts);
}

function schema(name, { properties = {} }) {
  const rows = Object.entries(properties).map(([key, one]) => [element("code", { textContent: key }), words(one), one.description ?? ""]);
  return element("article", { id: name }, element("h2", { textContent: name }), table(rows));
}

const told = await (await fetch("openapi.json")).json();
const address = new URL("v1/detect", location.href).href;
document.getElementById("example").textContent = `curl -F images=@photo.jpg '${address}?score=0.5'`;
const routes = Object.entries(told.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, one]) => route(path, method, one)));
document.getElementById("routes").replaceChildren(...routes);
document.getElementById("schemas").replaceChildren(...Object.entries(told.components.schemas).map(([name, one]) => schema(name, one)));
