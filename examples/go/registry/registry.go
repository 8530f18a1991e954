// Package registry is shared by agent and subscriber: the client, and error handling.
package registry

import (
	"cmp"
	"context"
	"math/rand/v2"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	registryv1 "example.com/ossa-registry-example/gen/ossa/registry/v1"
)

// CallTimeout limits a unary call; streams have no deadline.
const CallTimeout = 5 * time.Second

const (
	initialBackoff = 100 * time.Millisecond
	maxBackoff     = 2 * time.Second
)

// Connect returns a client of the registry at $REGISTRY, and a function that closes its connection.
func Connect() (registryv1.RegistryServiceClient, func() error, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// gRPC's default reconnect back-off grows to two minutes, during which leases would expire.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: initialBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: CallTimeout,
		}),
		// Detects a peer that disappeared without closing the connection.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		// All events of one revision arrive in one message, which may be large.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
	}
	if token := os.Getenv("OSSA_REGISTRY_TOKEN"); token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	connection, err := grpc.NewClient(cmp.Or(os.Getenv("REGISTRY"), "localhost:50051"), options...)
	if err != nil {
		return nil, nil, err
	}
	return registryv1.NewRegistryServiceClient(connection), connection.Close, nil
}

// IsFatal reports whether a retry is pointless. All other errors may be temporary, in particular Unavailable while a
// registry restarts.
func IsFatal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	default:
		return false
	}
}

// Reason returns the registry's reason for an error, such as CURSOR_EXPIRED; empty for errors that do not come from the
// registry.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// Backoff waits after consecutive failures: exponentially with full jitter, so that clients do not all reconnect at
// once after an outage.
func Backoff(ctx context.Context, failures int) {
	limit := min(maxBackoff, initialBackoff<<min(failures-1, 10))
	Sleep(ctx, rand.N(limit))
}

// Sleep waits for the duration, or until the context is done.
func Sleep(ctx context.Context, duration time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(duration):
	}
}

// bearer is a token that is sent with each call.
type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

// RequireTransportSecurity permits sending the token on unencrypted connections, which this example uses.
func (bearer) RequireTransportSecurity() bool { return false }
