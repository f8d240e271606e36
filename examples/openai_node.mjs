// A chat, a stream and a tool call with the official OpenAI client for JavaScript.
//
//     npm install openai
//     node examples/openai_node.mjs http://127.0.0.1:8080
import OpenAI from "openai";

const base = process.argv[2] ?? "http://127.0.0.1:8080";
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: process.env.MACH_API_KEY ?? "any" });

const model = (await client.models.list()).data[0].id;
console.log(`model: ${model}`);

const fields = {
  model,
  messages: [{ role: "user", content: "def reverse(s):" }],
  max_tokens: 64,
  temperature: 0,
  reasoning_effort: "none",
};
const answer = await client.chat.completions.create(fields);
console.log(`chat: ${JSON.stringify(answer.choices[0].message.content)}`);

process.stdout.write("stream: ");
for await (const chunk of await client.chat.completions.create({ ...fields, stream: true })) {
  for (const choice of chunk.choices) process.stdout.write(choice.delta.content ?? "");
}
console.log();

const called = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "Weather of a city",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
      },
    },
  ],
  tool_choice: "required",
  temperature: 0,
  max_tokens: 200,
});
for (const call of called.choices[0].message.tool_calls ?? []) {
  console.log(`tool: ${call.function.name} ${JSON.stringify(JSON.parse(call.function.arguments))}`);
}
