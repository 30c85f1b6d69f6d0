// Package config holds every setting of Berth in one struct and is the only
// reader of the process's environment. A value comes from, in this order: the
// command line, the environment, the YAML file, the default. Secrets are given
// by reference only and cannot be printed.
//
// The struct below is also the reference: its tags name the YAML key, the
// environment variables, the default, the bounds and the meaning of each
// setting, and Docs and Example are rendered from them.
package config

import (
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Config is the whole configuration. Make one with Load; it is not changed
// afterwards.
type Config struct {
	Listen  string `yaml:"listen" env:"BERTH_LISTEN" default:"127.0.0.1:7070" doc:"Address of the API and of /webhooks, as host:port. An address that other hosts can reach needs access.token."`
	DataDir string `yaml:"data_dir" env:"BERTH_DATA_DIR" computed:"/var/lib/berth for root, else $XDG_STATE_HOME/berth or ~/.local/state/berth" doc:"Folder of everything that Berth keeps. One server at a time may use it."`
	BaseURL string `yaml:"base_url" env:"ANTHROPIC_BASE_URL" default:"https://api.anthropic.com" doc:"Where the Claude platform is, for all environments that do not say otherwise."`
	APIKey  Secret `yaml:"api_key" env:"ANTHROPIC_API_KEY" doc:"API key of the workspace. Doctor, the commands that create agents and sessions, and the list of agents use it; serving sessions needs none."`

	Log          Log           `yaml:"log" doc:"What the server says on standard error."`
	Access       Access        `yaml:"access" doc:"Who may use the API."`
	Environments []Environment `yaml:"environments" doc:"The self-hosted environments whose sessions run here."`
	Webhooks     Webhooks      `yaml:"webhooks" doc:"Webhooks only make Berth faster: it polls in any case."`
	Sessions     Sessions      `yaml:"sessions" doc:"How sessions are served."`
	Sandbox      Sandbox       `yaml:"sandbox" doc:"The place where a session's tools run."`
	Agents       []Agent       `yaml:"agents" doc:"Settings of single agents' sandboxes, where they differ from the above. What is set with berth agents set wins over them."`
	Skills       Skills        `yaml:"skills" doc:"The skills of agents, unpacked once for all sessions."`
	Client       Client        `yaml:"client" doc:"For commands that talk to a running server."`

	// File is the YAML file that was read, "" when there was none.
	File string `yaml:"-"`
	// NoColor asks for plain output (NO_COLOR).
	NoColor bool `yaml:"-"`
	// CrashAt names points at which the server kills itself (BERTH_CRASH_AT), for
	// tests of what happens then: see internal/crash. It is refused wherever a
	// platform is not on this host.
	CrashAt string `yaml:"-"`
}

// Log configures logging.
type Log struct {
	Level  string `yaml:"level" env:"BERTH_LOG_LEVEL" default:"info" oneof:"debug,info,warn,error" doc:"The least important messages that are written."`
	Format string `yaml:"format" env:"BERTH_LOG_FORMAT" default:"text" oneof:"text,json" doc:"One line of text or of JSON for each message."`
}

// Access configures sign-in.
type Access struct {
	Token Secret `yaml:"token" env:"BERTH_TOKEN" doc:"Token that opens the API; commands send it, too. Without it the server makes one on its first start and keeps it in data_dir, and listens on this host only. At least 16 characters."`
}

// Environment is one environment at the Claude platform.
type Environment struct {
	ID          string   `yaml:"id" env:"ANTHROPIC_ENVIRONMENT_ID,ENVIRONMENT_ID" doc:"Id of the environment (env_…). The variable names one more environment, or one of the file's."`
	Key         Secret   `yaml:"key" env:"ANTHROPIC_ENVIRONMENT_KEY" doc:"The environment's key, made in the Claude console. The variable belongs to the environment that ANTHROPIC_ENVIRONMENT_ID names, or to the only one."`
	BaseURL     string   `yaml:"base_url" computed:"base_url of the server" doc:"Where this environment's platform is."`
	SigningKeys []Secret `yaml:"webhook_signing_keys" doc:"Signing secrets of webhook endpoints of this environment's workspace."`
}

// Webhooks configures the receiver.
type Webhooks struct {
	PublicURL   string   `yaml:"public_url" doc:"The https URL under which the Claude platform reaches this server's /webhooks. doctor shows and checks it."`
	SigningKeys []Secret `yaml:"signing_keys" env:"ANTHROPIC_WEBHOOK_SIGNING_KEY,WEBHOOK_SECRET" doc:"Signing secrets (whsec_…) that are accepted for every environment. The variable adds one. Several are accepted at a time, for their rotation; without any, webhooks are refused."`
}

// Sessions configures the keeper of sessions.
type Sessions struct {
	Capacity     int           `yaml:"capacity" min:"1" max:"10000" computed:"8 for each core, but no more than one for each 256 MiB of memory after the first 512 MiB; 2 to 512" doc:"Work items served at once. More wait in the platform's queue, where nothing is lost. Sessions that wait for a person or another client do not count, up to eight times as many items in all."`
	ReleaseAfter time.Duration `yaml:"release_after" default:"15s" min:"0s" max:"1h" doc:"From the end of a turn to the release of its work item. A message within this time is served without a new claim."`
	ToolTimeout  time.Duration `yaml:"tool_timeout" default:"120s" min:"1s" max:"1h" doc:"Longest run of one tool call. The model then reads that it timed out."`
	ReadEvery    time.Duration `yaml:"read_every" default:"60s" min:"5s" max:"1h" doc:"Longest time without reading a busy session's history, so that an event lost on the stream is found."`
	MemorySync   time.Duration `yaml:"memory_sync" default:"15s" min:"5s" max:"10m" doc:"Shortest time between two synchronizations of a session's memory stores while it works. They are synchronized at the beginning and the end of every work item in any case."`
	SweepEvery   time.Duration `yaml:"sweep_every" default:"5m" min:"10s" max:"24h" doc:"Between two looks at sessions that nobody works on, to remove what is left of those that have ended."`
}

// Sandbox configures what sandboxes are and may use.
type Sandbox struct {
	Backend      string        `yaml:"backend" env:"BERTH_DEFAULT_BACKEND" default:"linux" oneof:"linux,isolate" doc:"linux: a full Linux behind gVisor. isolate is not available yet."`
	Image        string        `yaml:"image" default:"host" doc:"What is installed in a sandbox. host: a read-only view of this host's own programs, nothing to download. Else an image of a registry, such as docker.io/library/debian:12, or oci:/path[:tag], tar:/path.tar or dir:/path on this host (docs/images.md)."`
	Warm         time.Duration `yaml:"warm" default:"5m" min:"0s" max:"24h" doc:"How long a sandbox's processes stay after its work item was released. Its files stay in any case."`
	Lifetime     time.Duration `yaml:"lifetime" default:"0s" min:"0s" max:"720h" doc:"Longest life of one sandbox from its start. After that it is replaced as soon as no call runs in it; its files stay. 0s: no limit, else at least 1m."`
	SetupTimeout time.Duration `yaml:"setup_timeout" default:"5m" min:"1s" max:"1h" doc:"Longest run of an agent's set-up command."`
	Pool         int           `yaml:"pool" default:"0" min:"0" max:"64" doc:"Sandboxes that are kept ready, each for one session. Those have the image and the limits above; sessions with others, with skills or with memory stores start their own."`
	Limits       Limits        `yaml:"limits" doc:"What one sandbox may use. Ceilings, not reservations."`
	Images       Images        `yaml:"images" doc:"Where images come from, and how long they stay."`
	Linux        Linux         `yaml:"linux" doc:"The linux backend."`
}

// Linux configures sandboxes that are a full Linux.
type Linux struct {
	Runtime string `yaml:"runtime" env:"BERTH_RUNTIME" default:"gvisor" doc:"What isolates a sandbox. gvisor: a kernel of its own, inside this program. runc, crun: the host's kernel behind namespaces; starts faster, for work that you trust. kata: a virtual machine. Or the absolute path of another OCI runtime. See docs/runtimes.md."`
}

// Limits bound one sandbox.
type Limits struct {
	Memory    Bytes   `yaml:"memory" default:"2GiB" min:"64MiB" max:"1TiB" doc:"Memory of all its processes together."`
	CPUs      float64 `yaml:"cpus" default:"2" min:"0.1" max:"256" doc:"Processor time, in cores."`
	Processes int64   `yaml:"processes" default:"512" min:"16" max:"65536" doc:"Processes and threads."`
	Disk      Bytes   `yaml:"disk" default:"10GiB" min:"0B" max:"16TiB" doc:"All that is written, in the workspace and outside it; 0B: no limit. Less than 64MiB counts as that. Needs root and loop devices; a workspace keeps the disk that it was made with."`
	OpenFiles int64   `yaml:"open_files" default:"8192" min:"64" max:"1048576" doc:"Open files of one process."`
}

// Images configures images other than the host's programs.
type Images struct {
	DockerConfig string        `yaml:"docker_config" env:"DOCKER_CONFIG" computed:".docker in the home directory" doc:"Folder with the config.json that docker login writes: the credentials for registries. Credential helpers that it names are used."`
	Platform     string        `yaml:"platform" computed:"this host's, such as linux/amd64" doc:"What is chosen from images that are made for several platforms."`
	Insecure     string        `yaml:"insecure" doc:"Registries that may be spoken to without TLS, as host:port, separated by commas. Those on this host may be in any case."`
	Folders      string        `yaml:"folders" doc:"Folders below which images of the kinds oci, tar and dir may lie, separated by commas. sandbox.image is allowed in any case."`
	Refresh      time.Duration `yaml:"refresh" default:"0s" min:"0s" max:"720h" doc:"Time after which a tag is looked up again before a sandbox is made. 0s: only when somebody pulls it."`
	Keep         time.Duration `yaml:"keep" default:"168h" min:"1h" max:"8760h" doc:"How long an image stays that no sandbox uses."`
	MaxSize      Bytes         `yaml:"max_size" default:"20GiB" min:"1MiB" max:"1TiB" doc:"Largest size of an image when it is unpacked."`
	PullTimeout  time.Duration `yaml:"pull_timeout" default:"30m" min:"1m" max:"24h" doc:"Longest time that one pull may take."`
}

// Names returns the entries of a list that is separated by commas.
func Names(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// Sandbox returns the limits in the words of the sandbox contract.
func (l Limits) Sandbox() sandbox.Limits {
	return sandbox.Limits{
		MemoryBytes: int64(l.Memory), CPUs: l.CPUs, Processes: l.Processes, OpenFiles: uint64(max(l.OpenFiles, 0)),
		DiskBytes: int64(l.Disk),
	}
}

// Skills configures their cache below data_dir.
type Skills struct {
	Keep time.Duration `yaml:"keep" default:"720h" min:"1h" max:"8760h" doc:"How long a version of a skill stays after it was last used."`
	Size Bytes         `yaml:"size" default:"10GiB" min:"16MiB" max:"1TiB" doc:"Of all versions, unpacked. Beyond it those that were used longest ago are removed; sandboxes that show them keep their files."`
}

// Client configures the commands that talk to a server.
type Client struct {
	Server string `yaml:"server" env:"BERTH_SERVER" computed:"http:// and the address in listen" doc:"URL of the server's API."`
}

// WebhookSecrets returns the signing secrets of all environments, each once.
func (c Config) WebhookSecrets() []string {
	seen := map[string]bool{"": true}
	var out []string
	add := func(keys []Secret) {
		for _, k := range keys {
			if v := k.Reveal(); !seen[v] {
				seen[v] = true
				out = append(out, v)
			}
		}
	}
	add(c.Webhooks.SigningKeys)
	for _, e := range c.Environments {
		add(e.SigningKeys)
	}
	return out
}
