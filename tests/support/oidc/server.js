// A real authorization server for tests: oidc-provider, with its own pages for people.
// Arguments: seconds that access tokens are good for. Each grant is a JSON line of standard
// output; the first line is the issuer.
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const life = Number(process.argv[2]);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const server = createServer();

server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: "desk",
        application_type: "native",
        token_endpoint_auth_method: "none",
        redirect_uris: ["http://127.0.0.1/callback"],
        grant_types: [
          "authorization_code",
          "refresh_token",
          "urn:ietf:params:oauth:grant-type:device_code",
        ],
      },
      {
        client_id: "robot",
        client_secret: "robot-secret-of-the-tests",
        redirect_uris: [],
        response_types: [],
        grant_types: ["client_credentials"],
      },
    ],
    cookies: { keys: ["only for tests"] },
    features: {
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true, allowedPolicy: () => true },
    },
    issueRefreshToken: (_, client) => client.clientId === "desk",
    rotateRefreshToken: true,
    scopes: ["openid", "offline_access", "api"],
    ttl: {
      AccessToken: life,
      ClientCredentials: life,
      DeviceCode: 600,
      Grant: 86400,
      IdToken: 600,
      Interaction: 600,
      RefreshToken: 86400,
      Session: 600,
    },
  });
  for (const event of ["grant.success", "grant.error", "grant.revoked"])
    provider.on(event, (context, error) =>
      say({
        event,
        grant: context?.oidc?.params?.grant_type,
        error: event === "grant.error" ? error.error : undefined,
      }),
    );
  server.on("request", provider.callback());
  say(issuer);
});
