// A real authorization server for tests: oidc-provider, with its own pages for people.
// Arguments: seconds that access tokens are good for; the public keys (JWKS) of who signs for
// alice. Each grant is a JSON line of standard output; the first line is the issuer.
// JWT bearer (RFC 7523) and token exchange (RFC 8693) are grants that it lets one register: its
// own client authentication, parameters and tokens, and jose, which checks what is signed.
import { createServer } from "node:http";
import { createLocalJWKSet, jwtVerify } from "jose";
import { errors, Provider } from "oidc-provider";

const JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token";
const AUDIENCE = "https://api.example.com";

const life = Number(process.argv[2]);
const keys = createLocalJWKSet(JSON.parse(process.argv[3]));
const seen = new Set();
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
      {
        client_id: "signer",
        client_secret: "signer-secret-of-the-tests",
        redirect_uris: [],
        response_types: [],
        grant_types: [JWT_BEARER],
      },
      {
        client_id: "exchanger",
        client_secret: "exchanger-secret-of-the-tests",
        redirect_uris: [],
        response_types: [],
        grant_types: [EXCHANGE],
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
  const issue = async (ctx, accountId, more = {}) => {
    const { client, params, provider } = ctx.oidc;
    const token = new provider.AccessToken({
      accountId, client, clientId: client.clientId, scope: params.scope, gty: "custom",
    });
    ctx.oidc.entity("AccessToken", token);
    ctx.body = {
      access_token: await token.save(),
      expires_in: token.expiration,
      token_type: token.tokenType,
      scope: token.scope,
      ...more,
    };
  };
  provider.registerGrantType(
    JWT_BEARER,
    async (ctx) => {
      const { assertion } = ctx.oidc.params;
      const verified = await jwtVerify(assertion, keys, {
        issuer: "desk",
        subject: "alice",
        audience: `${issuer}/token`,
        typ: "JWT",
        maxTokenAge: "10 minutes",
        requiredClaims: ["exp", "iat", "jti"],
      }).catch((error) => {
        throw new errors.InvalidGrant(error.code);
      });
      const { jti, exp, iat } = verified.payload;
      if (seen.has(jti) || exp - iat > 600) throw new errors.InvalidGrant("used or too long");
      seen.add(jti);
      await issue(ctx, verified.payload.sub);
    },
    ["assertion", "scope"],
  );
  provider.registerGrantType(
    EXCHANGE,
    async (ctx) => {
      const { params, provider } = ctx.oidc;
      const known = [params.subject_token_type, params.requested_token_type];
      if (known.some((type) => type !== ACCESS_TOKEN))
        throw new errors.InvalidRequest("these types are not known");
      if (params.audience !== AUDIENCE) throw new errors.InvalidTarget("not that audience");
      const subject = await provider.AccessToken.find(params.subject_token);
      if (!subject?.isValid) throw new errors.InvalidGrant("no such token, or not any more");
      await issue(ctx, subject.accountId, { issued_token_type: ACCESS_TOKEN });
    },
    ["subject_token", "subject_token_type", "requested_token_type", "audience", "scope"],
  );
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
