// A Workload API client that we did not write the library of: go-spiffe.
//
//	client fetch      print the X.509 context as one JSON object
//	client watch N    print a JSON object per update until N were seen
//
// The socket is the one of SPIFFE_ENDPOINT_SOCKET. Each leaf is verified against the bundle of its trust domain.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type identity struct {
	ID       string    `json:"id"`
	Serial   string    `json:"serial"`
	Chain    int       `json:"chain"`
	NotAfter time.Time `json:"notAfter"`
	// Hex SHA-256 of each authority of the trust domain.
	Authorities []string `json:"authorities"`
}

type watcher struct {
	ctx  context.Context
	left chan struct{}
}

func report(c *workloadapi.X509Context) error {
	svid := c.DefaultSVID()
	id, _, err := x509svid.Verify(svid.Certificates, c.Bundles)
	if err != nil {
		return fmt.Errorf("the SVID does not verify against the bundle it came with: %w", err)
	}
	leaf := svid.Certificates[0]
	out := identity{ID: id.String(), Serial: leaf.SerialNumber.Text(16), Chain: len(svid.Certificates), NotAfter: leaf.NotAfter}
	bundle, err := c.Bundles.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return err
	}
	for _, a := range bundle.X509Authorities() {
		sum := sha256.Sum256(a.Raw)
		out.Authorities = append(out.Authorities, hex.EncodeToString(sum[:]))
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	if err := report(c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	w.left <- struct{}{}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	// The end of the watch is an error to the library, too.
	if w.ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "watch:", err)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "fetch" {
		c, err := workloadapi.FetchX509Context(ctx)
		if err != nil {
			return err
		}
		return report(c)
	}
	if len(args) == 2 && args[0] == "watch" {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		w := &watcher{ctx: ctx, left: make(chan struct{})}
		failed := make(chan error, 1)
		go func() { failed <- workloadapi.WatchX509Context(ctx, w) }()
		for ; n > 0; n-- {
			select {
			case <-w.left:
			case err := <-failed:
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("usage: client fetch | client watch N")
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
