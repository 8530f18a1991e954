// Package registry has what agent and subscriber share: the client, and what to do when a call fails.
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

// Deadline is how long a call may take; streams have none.
const Deadline = 5 * time.Second

const (
	firstBackoff = 100 * time.Millisecond
	mostBackoff  = 2 * time.Second
)

// Connect makes a client of the registry at $REGISTRY, and a function that closes its connection.
func Connect() (registryv1.RegistryServiceClient, func() error, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// By default gRPC waits up to two minutes before it connects again; leases would run out.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: mostBackoff},
			MinConnectTimeout: Deadline,
		}),
		// Finds a peer that is gone without a word.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		// All events of one revision come in one message.
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

// IsFatal tells whether it is no use to try again. All other errors may pass: above all Unavailable, while a registry
// restarts.
func IsFatal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	default:
		return false
	}
}

// Reason is the registry's own word for an error, such as CURSOR_EXPIRED; empty for errors that it did not make.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// Wait waits after so many failures in a row, 1 or more: exponentially with full jitter, since after an outage all
// clients come back and should not come at once.
func Wait(ctx context.Context, failures int) {
	longest := min(mostBackoff, firstBackoff<<min(failures-1, 10))
	Sleep(ctx, rand.N(longest))
}

// Sleep returns after a time, or when the context is done.
func Sleep(ctx context.Context, duration time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(duration):
	}
}

// bearer is a token that goes with each call.
type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

// RequireTransportSecurity lets the token go over connections that are not encrypted, as ours are here.
func (bearer) RequireTransportSecurity() bool { return false }
