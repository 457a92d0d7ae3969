// Sends one Web Push message by the npm library web-push, and prints what the library reports.
//
// Standard input: {"subscription": ..., "payload": base64 or null, "options": ...}
// Standard output: {"status": ..., "headers": ..., "body": ...}

const webPush = require("web-push");

async function main() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  const { subscription, payload, options } = JSON.parse(text);
  const bytes = payload === null ? null : Buffer.from(payload, "base64");
  try {
    const { statusCode, headers, body } = await webPush.sendNotification(subscription, bytes, options);
    return { status: statusCode, headers, body };
  } catch (error) {
    if (!(error instanceof webPush.WebPushError)) throw error;
    return { status: error.statusCode, headers: error.headers, body: error.body, refused: true };
  }
}

main().then((report) => console.log(JSON.stringify(report)));
